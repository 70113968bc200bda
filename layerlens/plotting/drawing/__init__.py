"""What figures are drawn with: canvases, bars, images, scales and text."""
