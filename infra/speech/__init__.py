"""Speech in videos: the port, and Whisper behind it."""
