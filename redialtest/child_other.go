//go:build !linux

package redialtest

import "syscall"

func childAttr() *syscall.SysProcAttr { return nil }
