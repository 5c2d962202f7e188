package sys

// Error numbers, which Plan 9 has not: it reports errors as text.

// IsConnectionError is always false.
func IsConnectionError(error) bool { return false }
