"""Images as files: any prefix is a picture, the whole file is the exact pixels."""
