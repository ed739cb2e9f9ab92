"""mmcae: Context Autoencoder pretraining for vision transformers, and what follows from it, on the OpenMMLab stack."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def requirements(name):
    """The lines of requirements/NAME.txt without their comments."""
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text().splitlines()
    return [line.split('#')[0].strip() for line in lines if line.split('#')[0].strip()]


def version():
    """The package's version, without importing it: its dependencies may not be there yet."""
    scope = {}
    exec((ROOT / 'mmcae' / 'version.py').read_text(), scope)
    return scope['__version__']


setup(
    name='mmcae',
    version=version(),
    description='Pretrain vision transformers with the Context Autoencoder on your own images; '
    'carry them into classification, detection and segmentation',
    long_description=(ROOT / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['mmcae', 'mmcae.*']),
    python_requires='>=3.10',
    entry_points=dict(console_scripts=['mmcae = mmcae.commands.main:main']),
    install_requires=requirements('runtime'),
    # Two stacks with the same import names, of which one must be there; that is why neither is a core requirement.
    extras_require={name: requirements(name) for name in ('openmmlab', 'onedl', 'deepspeed', 'tests')},
)
