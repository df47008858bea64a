"""What several formats share: the contract `Layout`, pairs of images and annotation files, shapes."""
