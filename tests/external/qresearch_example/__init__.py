"""A quantizer, an allocator, a model and a data set, as somebody outside adds them."""
