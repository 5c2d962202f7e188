//go:build !unix && !windows

package redialtest

import "errors"

var errRefused = errors.New("connection refused")

func stopProcess(int) error     { return errors.ErrUnsupported }
func continueProcess(int) error { return errors.ErrUnsupported }
