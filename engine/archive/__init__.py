"""The archive: exports of the event log to files, their verification and import."""
