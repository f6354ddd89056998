"""The life of an upload, from opening it to publishing MediaUploaded.

All upload methods share these steps: the upload is opened as PENDING, its bytes are stored in S3,
they are checked against the declaration, and then one transaction makes the media item UPLOADED and
publishes MediaUploaded. Every step may be repeated, run concurrently, and resume after a crash at
any point.
"""
