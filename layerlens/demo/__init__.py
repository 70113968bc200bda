"""The demonstration: a real model, real pictures, and a gallery of what layerlens shows of them."""
