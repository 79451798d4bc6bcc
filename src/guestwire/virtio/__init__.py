"""What virtio itself says: features, configuration, rings."""
