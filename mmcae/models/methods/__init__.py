"""Methods: what is learnt. One file for each, which reads like its paper's figure."""
