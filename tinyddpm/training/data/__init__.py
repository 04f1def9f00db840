"""Reading images: folders, archives, arrays; decoding and resizing them."""
