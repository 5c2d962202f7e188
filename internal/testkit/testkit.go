// Package testkit is what several suites of tests have in common: clients that are ready,
// load, faults, the folder of the repository. It is for tests of this module alone, those
// of the root and of the folders in tests; it may use redial and redialtest, as a user
// would. What tests inside package redial need has to be in a package below that imports
// nothing of it.
package testkit

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/internal/testkit/platform"
	"github.com/redial-go/redial/redialtest"
)

// atATime is how many parallel tests run at a time, unless -parallel says otherwise or there
// are more processors: they wait more than they calculate, but with the race detector.
func atATime() int {
	if platform.RaceDetector {
		return 8
	}
	return 12
}

// Main is the body of every TestMain: it runs the tests, looks for what they have left, says
// what was skipped, and exits.
func Main(m *testing.M) {
	flag.Parse()
	said := false
	flag.Visit(func(f *flag.Flag) { said = said || f.Name == "test.parallel" })
	if !said && runtime.GOMAXPROCS(0) < atATime() {
		if err := flag.Set("test.parallel", strconv.Itoa(atATime())); err != nil {
			panic(err) // it is a flag of package testing
		}
	}
	code := redialtest.LeaksMain(m)
	if skipped := redialtest.Skipped(); skipped != "" {
		fmt.Fprintln(os.Stderr, skipped)
	}
	os.Exit(code)
}

// WaitReady waits up to 5 s for c to be Connected.
func WaitReady(t *testing.T, c interface{ WaitReady(context.Context) error }) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	require.NoError(t, c.WaitReady(ctx))
}

// NewCluster returns a client that is Connected to every node and closed with the test.
func NewCluster(t *testing.T, cluster *redialtest.Cluster, opts ...redial.Option) *redial.ClusterClient {
	t.Helper()
	c := redial.NewClusterClient(&redis.ClusterOptions{Addrs: cluster.Addrs()}, opts...)
	t.Cleanup(func() { _ = c.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	require.NoError(t, c.WaitReady(ctx))
	return c
}

// Connect returns a client that is Connected and closed with the test.
func Connect(t *testing.T, opt *redis.Options, opts ...redial.Option) *redial.Client {
	t.Helper()
	c := redial.NewClient(opt, opts...)
	t.Cleanup(func() { _ = c.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	require.NoError(t, c.WaitReady(ctx))
	return c
}

// Passing is a hook that does nothing.
type Passing struct{}

// DialHook implements redis.Hook.
func (Passing) DialHook(next redis.DialHook) redis.DialHook { return next }

// ProcessHook implements redis.Hook.
func (Passing) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error { return next(ctx, cmd) }
}

// ProcessPipelineHook implements redis.Hook.
func (Passing) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error { return next(ctx, cmds) }
}

// Root returns the path of the folder that this module is in, from the one that a test runs
// in, which is that of its package.
func Root() string {
	dir := "."
	for range 8 {
		b, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(b), "module github.com/redial-go/redial\n") {
			return dir
		}
		dir = filepath.Join(dir, "..")
	}
	panic("testkit: no folder above this one is the root of the module")
}

// Document returns the text of a document, by its name from the root.
func Document(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(Root(), name))
	require.NoError(t, err)
	return string(b)
}
