"""Laws and material that users can run on their own stores, methods, encoders and ops."""
