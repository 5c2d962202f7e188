package redial_test

import "testing"

func showWrappedErrors(t *testing.T)  {}
func showOwnRetries(t *testing.T)     {}
func showContextTimeout(t *testing.T) {}
func showCloneHooks(t *testing.T)     {}
func showAnsweredKept(t *testing.T)   {}
func showRefusalsHidden(t *testing.T) {}
