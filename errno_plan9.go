package redial

// isConnErrno is always false: Plan 9 reports errors as text.
func isConnErrno(error) bool { return false }
