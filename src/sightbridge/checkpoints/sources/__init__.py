"""Files of weights of every container in the field, read one tensor at a time, and written the same way."""
