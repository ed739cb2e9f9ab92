"""The CAE models that pretrain_step.py and flops.py compare: mmcae's recipe and mmpretrain's config, in the same sizes."""

import contextlib
from pathlib import Path

RECIPE = Path(__file__).resolve().parents[2] / 'configs/cae/cae_vit-base-p16_32xb64-amp-coslr-300e_in1k.py'
THEIR_CONFIG = 'cae/cae_beit-base-p16_8xb256-amp-coslr-300e_in1k.py'
THEIRS, OURS = 'mmpretrain', 'mmcae'
PARTS = ('tokenizer', 'encoder', 'target', 'regressor', 'decoder', 'loss', 'backward', 'optimizer')


def add_size_arguments(parser, batch_size):
    """The options that both tools have: how large model and batch are."""
    parser.add_argument('--batch-size', type=int, default=batch_size, help='images (default: %(default)s)')
    parser.add_argument('--img-size', type=int, default=224, help='pixels, a multiple of 16 (default: %(default)s)')
    parser.add_argument(
        '--width', type=int, default=768, help='of encoder, regressor and decoder; heads are 64 wide (default: %(default)s)'
    )
    parser.add_argument('--depth', type=int, default=12, help='blocks of the encoder (default: %(default)s)')
    parser.add_argument('--tokenizer-width', type=int, default=256, help="hidden channels of DALL-E's encoder (default: %(default)s)")


def build_all(args, contenders, tokenizer):
    """Name -> (model, optimizer wrapper), all with the weights of mmpretrain's model; writes those of its tokenizer to a file."""
    import torch

    from mmcae.checkpoints import load_strictly, to_mmcae, tokenizer_of

    torch.manual_seed(0)
    models = {THEIRS: build(args, **contenders[THEIRS])}
    state = models[THEIRS][0].state_dict()
    torch.save(tokenizer_of(state), tokenizer)
    for name, how in contenders.items():
        if name == THEIRS:
            continue
        models[name] = build(args, **how, tokenizer=tokenizer)
        model = models[name][0]
        if how['ours']:
            load_strictly(model, to_mmcae(state, 'mmpretrain'), THEIRS)
        else:
            model.load_state_dict(state)
    return models


def build(args, ours, dtype, tokenizer=None, tokenizer_dtype=None, compile=False, complementary=False):
    """A model with random weights in training mode, and its optimizer wrapper, as the config of either framework has them."""
    from mmengine.logging import MMLogger
    from mmengine.optim import build_optim_wrapper
    from mmengine.registry import DefaultScope

    import mmcae.engine
    from mmcae import compat
    from mmcae.registry import MODELS

    compat.import_mmpretrain()
    if DefaultScope.get_current_instance() is None:
        DefaultScope.get_instance('benchmark', scope_name='mmpretrain')
        MMLogger.get_instance('benchmark', log_level='ERROR')  # a line for each frozen weight otherwise
    cfg = our_config(args, tokenizer, tokenizer_dtype) if ours else their_config(args)
    if complementary:
        cfg.model.complementary = True
    model = MODELS.build(cfg.model)
    if not ours:
        model.init_weights()
    model = model.to(args.device).train()
    if dtype is None:
        cfg.optim_wrapper = {key: value for key, value in cfg.optim_wrapper.items() if key not in ('type', 'dtype', 'loss_scale')}
    else:
        cfg.optim_wrapper.dtype = dtype
    if compile:
        mmcae.engine.CompileParts().compile(model)
    return model, build_optim_wrapper(model, cfg.optim_wrapper)


def our_config(args, tokenizer, tokenizer_dtype):
    from mmcae.utils.configs.loading import load_config

    cfg = load_config(RECIPE)
    heads = max(1, args.width // 64)
    latent = dict(embed_dims=args.width, num_heads=heads, drop_path_rate=0.0)
    arch = dict(embed_dims=args.width, num_layers=args.depth, num_heads=heads)
    cfg.model.backbone.update(arch=arch, img_size=args.img_size, drop_path_rate=0.0)
    cfg.model.regressor.update(in_dims=args.width, **latent)
    cfg.model.decoder.update(latent)
    cfg.model.target_generator.update(checkpoint=tokenizer and str(tokenizer), dtype=tokenizer_dtype)
    cfg.model.data_preprocessor = dict(cfg.data_preprocessor)
    return cfg


def their_config(args):
    import mmpretrain
    from mmengine.config import Config

    cfg = Config.fromfile(Path(mmpretrain.__file__).parent / '.mim/configs' / THEIR_CONFIG)
    heads = max(1, args.width // 64)
    arch = dict(embed_dims=args.width, num_layers=args.depth, num_heads=heads, feedforward_channels=4 * args.width)
    cfg.model.backbone.update(arch=arch, img_size=args.img_size)
    cfg.model.neck.update(embed_dims=args.width, num_heads=heads, mask_tokens_num=masked_patches(args, args.mask_ratio))
    cfg.model.target_generator = dict(type='DALL-E', n_hid=args.tokenizer_width)
    cfg.model.data_preprocessor = dict(cfg.data_preprocessor, to_rgb=False)  # which ours are from the start
    return cfg


def masked_patches(args, ratio):
    return min(max(1, round(ratio * (args.img_size // 16) ** 2)), (args.img_size // 16) ** 2 - 1)


def make_batch(args, ratio, images=None):
    """Two views of random pixels and a random mask for each image, as a dataloader gives them."""
    import torch
    from mmpretrain.structures import DataSample

    grid, images = args.img_size // 16, images or args.batch_size
    random = torch.Generator().manual_seed(0)
    views = [torch.randint(256, (images, 3, size, size), generator=random, dtype=torch.uint8) for size in (16 * grid, 8 * grid)]
    masks = torch.rand(images, grid**2, generator=random).argsort(dim=1) < masked_patches(args, ratio)
    return dict(inputs=views, data_samples=[DataSample(mask=mask.view(grid, grid)) for mask in masks])


def step(model, optim_wrapper, batch):
    """One iteration of training, as the runner makes it."""
    model.train_step(dict(inputs=list(batch['inputs']), data_samples=batch['data_samples']), optim_wrapper)


def check(models, batch):
    """Compare losses and gradients before the first update: to float32's rounding, or in mixed precision to a few per cent."""
    found = {}
    for name, (model, optim_wrapper) in models.items():
        with optim_wrapper.optim_context(model):
            data = model.data_preprocessor(dict(inputs=list(batch['inputs']), data_samples=batch['data_samples']), True)
            losses = model(**data, mode='loss')
        total, _ = model.parse_losses(losses)
        total.backward()
        squares = [parameter.grad.double().square().sum().item() for parameter in model.parameters() if parameter.grad is not None]
        optim_wrapper.zero_grad()
        main, align = (losses.get(f'loss_{term}', losses.get(term)).item() for term in ('main', 'align'))
        found[name] = dict(main=main, align=align, gradient=sum(squares) ** 0.5)
    for name, values in found.items():
        tolerance = 0.05 if hasattr(models[name][1], 'cast_dtype') else 1e-3
        for term, value in values.items():
            wanted = found[THEIRS][term]
            if not abs(value - wanted) <= tolerance * abs(wanted):
                raise SystemExit(f'{name} computes something else than {THEIRS}: {term} is {value:.6g}, not {wanted:.6g}')


# ---------------------------------------------------------------- the parts of a step


def functions_of(model, optim_wrapper):
    """Part -> the functions that are it, each as (owner, name)."""
    update = dict(backward=[(optim_wrapper, 'backward')], optimizer=[(optim_wrapper, 'step'), (optim_wrapper, 'zero_grad')])
    if hasattr(model, 'regressor'):
        calls = dict(encoder='encode', target='alignment_target', regressor='regress', decoder='decode', loss='losses')
        return {part: [(model, name)] for part, name in calls.items()} | dict(tokenizer=[(model.target_generator, 'targets')]) | update
    neck = model.neck
    modules = dict(
        tokenizer=[model.target_generator],
        encoder=[model.backbone],
        target=[model.teacher],
        regressor=[*neck.regressors, neck.norm_regressor],
        decoder=[*neck.decoders, neck.norm_decoder, neck.head],
    )
    calls = {part: [(module, 'forward') for module in parts] for part, parts in modules.items()} | update
    calls['target'].append((model, 'momentum_update'))
    return calls | dict(loss=[(model.head, 'loss')])


@contextlib.contextmanager
def metered(functions, meter):
    """How far a meter (a clock, a counter) moves in functions, given as part -> [(owner, name)].

    A function that another of them calls counts for the caller's part.
    """
    moved, running = dict.fromkeys(functions, 0), []

    def watch(function, part):
        def run(*args, **kwargs):
            if running:
                return function(*args, **kwargs)
            running.append(part)
            start = meter()
            try:
                return function(*args, **kwargs)
            finally:
                moved[part] += meter() - start
                running.pop()

        return run

    replaced = [(owner, name, name in vars(owner), getattr(owner, name)) for pairs in functions.values() for owner, name in pairs]
    for part, pairs in functions.items():
        for owner, name in pairs:
            setattr(owner, name, watch(getattr(owner, name), part))
    try:
        yield moved
    finally:
        for owner, name, own, function in replaced:
            setattr(owner, name, function) if own else delattr(owner, name)
