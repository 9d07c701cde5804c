"""The gRPC services: one module each, thin over hvd.guests and its neighbours."""
