"""COCO's annotation files, checked before anything is learnt from them."""
