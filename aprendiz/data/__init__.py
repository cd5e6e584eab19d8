"""From a folder of pictures to training examples: found, checked, sized, cached, dealt out in batches."""
