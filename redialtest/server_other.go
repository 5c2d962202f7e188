//go:build !unix && !windows

package redialtest

import "errors"

var errRefused = errors.New("connection refused")
