// Systems without SIGSTOP.

//go:build !unix

package process

import "errors"

func stopProcess(int) error     { return errors.ErrUnsupported }
func continueProcess(int) error { return errors.ErrUnsupported }
