# What all configs of Fashion-MNIST know of it. The rest is that of the digits: the data have the same layout and size.

fashion_root = 'data/fashion/'
fashion_scenes_root = 'data/fashion_scenes/'
fashion_classes = (
    '0_t-shirt',
    '1_trouser',
    '2_pullover',
    '3_dress',
    '4_coat',
    '5_sandal',
    '6_shirt',
    '7_sneaker',
    '8_bag',
    '9_ankle-boot',
)
fashion_preparation = 'Prepare it with: python tools/dataset_converters/fashion_mnist.py --out data/fashion'
fashion_scenes_preparation = (
    f'{fashion_preparation}, then: python tools/dataset_converters/make_scenes.py data/fashion/classification --out data/fashion_scenes'
)
