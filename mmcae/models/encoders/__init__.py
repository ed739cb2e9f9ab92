"""Encoders: what looks at images, in pretraining and in every task that follows."""
