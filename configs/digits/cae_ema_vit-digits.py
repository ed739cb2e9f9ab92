# cae_vit-digits.py with an exponential moving average of the weights: checkpoints hold the average as state_dict, which every tool reads,
# and the weights that training goes on with as ema_state_dict.

_base_ = ['cae_vit-digits.py']

# ---- often changed: the share by which each step moves the average
custom_hooks = [dict(type='EMAHook', momentum=0.005, priority='ABOVE_NORMAL')]
