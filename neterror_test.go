package redial

import (
	"context"
	"errors"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial/internal/wire"
)

// Code that was written for package net asserts the type of an error directly.
func TestError_IsANetError(t *testing.T) {
	bubble(t, func(t *testing.T, n *memNet, opt *redis.Options) {
		opt.ReadTimeout = 300 * time.Millisecond
		c := NewClient(opt, WithRetry(RetryNever))
		defer c.Close()
		ready(t, c)
		require.NoError(t, c.Set(t.Context(), "k", "v", 0).Err())
		n.Freeze()
		err := c.Get(t.Context(), "k").Err()
		require.ErrorIs(t, err, ErrOutcomeUnknown)
		ne, ok := err.(net.Error)
		require.True(t, ok, "%T", err)
		assert.True(t, ne.Timeout())
		//lint:ignore SA1019 a caller may still use it
		assert.True(t, ne.Temporary())
		n.Thaw()
	})
	for _, err := range []error{
		&wire.Error{Phase: wire.PhaseRead, Err: os.ErrDeadlineExceeded},
		&Error{kind: ErrUnavailable, Err: &cutShort{ctx: context.DeadlineExceeded, cause: errRefused}},
		&Error{kind: ErrUnavailable, Err: &unsealed{"x", &wire.Error{Err: os.ErrDeadlineExceeded}}},
		&Error{kind: ErrUnavailable, Err: &wire.RetiredError{Cause: os.ErrDeadlineExceeded}},
	} {
		ne, ok := err.(net.Error)
		require.True(t, ok, "%T", err)
		assert.True(t, ne.Timeout(), "%v", err)
		//lint:ignore SA1019 a caller may still use it
		assert.True(t, ne.Temporary(), "%v", err)
	}
	for _, cause := range []error{errRefused, &net.OpError{Op: "read", Err: os.NewSyscallError("read", syscall.ECONNRESET)}, errors.New("other"), context.Canceled} {
		for _, err := range []error{&wire.Error{Err: cause}, &Error{kind: ErrUnavailable, Err: cause}} {
			ne := err.(net.Error)
			assert.False(t, ne.Timeout(), "%v", err)
			bare, ok := cause.(net.Error)
			//lint:ignore SA1019 a caller may still use it
			assert.Equal(t, ok && bare.Temporary(), ne.Temporary(), "%v", err)
		}
	}
}
