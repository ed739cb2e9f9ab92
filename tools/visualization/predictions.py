"""`mmcae predictions`, where users of OpenMMLab look for it."""

from mmcae.commands.main import run_command

if __name__ == '__main__':
    run_command('predictions')
