"""What training an editor takes, whatever the method."""
