package bubble

import (
	"errors"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/internal/testkit"
	"github.com/redial-go/redial/internal/testkit/memnet"
)

func TestMain(m *testing.M) { testkit.Main(m) }

// ready returns a client that is Connected, and closed with the test.
func ready(t *testing.T, opt *redis.Options, with ...redial.Option) *redial.Client {
	t.Helper()
	c := redial.NewClient(opt, with...)
	t.Cleanup(func() { _ = c.Close() })
	memnet.Ready(t, c)
	return c
}

// faulty returns such a client and what has its server, on n, misbehave.
func faulty(t *testing.T, n *memnet.Net, opt *redis.Options, with ...redial.Option) (*redial.Client, *memnet.Faults) {
	t.Helper()
	f := memnet.Inject(n)
	return ready(t, opt, with...), f
}

var errTest = errors.New("test")

// redisError is a reply that is an error.
type redisError string

func (e redisError) Error() string { return string(e) }
func (redisError) RedisError()     {}

// passing is a hook that leaves everything alone.
type passing struct{}

func (passing) DialHook(next redis.DialHook) redis.DialHook          { return next }
func (passing) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }
func (passing) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}
