"""The pages: the operators' console, the creators' studio, the visitors' site.

A client of both APIs over HTTP, with the visitor's own token: who may see and do what is decided
there and nowhere else. It imports nothing of Backlot but `infra`.
"""
