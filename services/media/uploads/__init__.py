"""The lifecycle of an upload, from opening it to publishing MediaUploaded.

All upload methods share these steps: the upload is opened as PENDING, its bytes are stored in S3
and checked against the declaration, and then one transaction makes the media item UPLOADED and
publishes MediaUploaded. Every step may be repeated, may run concurrently, and can be resumed after
a crash at any point.
"""
