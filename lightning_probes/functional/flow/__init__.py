"""What flows through the layers: activations forwards, gradients backwards, and how large they are."""
