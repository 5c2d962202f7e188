// Where the kernel does not kill children with their parent.

//go:build !linux

package process

import "syscall"

func childAttr() *syscall.SysProcAttr { return nil }
