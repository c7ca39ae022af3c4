"""Object detection. The operations on boxes know no network, no data and no training."""
