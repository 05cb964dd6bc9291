"""What a person meets: command line, report, server."""
