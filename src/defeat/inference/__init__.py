"""A trained detector at work: evaluated on a split, or on somebody's images and videos."""
