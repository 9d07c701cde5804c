"""The API's wire form: generated stubs (from proto/), the trace record's layout. The one package that daemon and client both import."""
