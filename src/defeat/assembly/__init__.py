"""From words to objects: settings, and what makes an experiment of them."""
