package redial

import (
	"context"
	"errors"

	"github.com/redis/go-redis/v9"
)

// UniversalClient is a client of any kind under supervision: a [Client], a
// [ClusterClient] or a [Ring]. Its methods are safe for concurrent use.
type UniversalClient interface {
	redis.UniversalClient

	// State, WaitReady, WaitForState, Reconnect and Stats are those of a Supervisor.
	State() State
	WaitReady(ctx context.Context) error
	WaitForState(ctx context.Context, want State) error
	Reconnect(reason string)
	Stats() Stats
	// Drain closes the client gracefully, see Client.Drain.
	Drain(ctx context.Context) error
}

var _ = []UniversalClient{(*Client)(nil), (*ClusterClient)(nil), (*Ring)(nil)}

// NewUniversalClient is redis.NewUniversalClient under supervision, and chooses the
// kind of client by the same rules:
//
//   - with MasterName and one of RouteByLatency, RouteRandomly and IsClusterMode that
//     of [NewFailoverClusterClient],
//   - with MasterName alone that of [NewFailoverClient],
//   - with two addresses or more, or IsClusterMode, that of [NewClusterClient],
//   - otherwise that of [NewClient].
//
// It does no I/O and never waits. It panics when opt is nil or invalid.
func NewUniversalClient(opt *redis.UniversalOptions, opts ...Option) UniversalClient {
	if opt == nil {
		panic(errors.New("redial: universal options are nil"))
	}
	own := *opt // go-redis sets the default address in it
	switch {
	case own.MasterName != "" && (own.RouteByLatency || own.RouteRandomly || own.IsClusterMode):
		return NewFailoverClusterClient(own.Failover(), opts...)
	case own.MasterName != "":
		return NewFailoverClient(own.Failover(), opts...)
	case len(own.Addrs) > 1 || own.IsClusterMode:
		return NewClusterClient(own.Cluster(), opts...)
	}
	return NewClient(own.Simple(), opts...)
}
