"""Image and video files to pixels, and the augmentation of training images."""
