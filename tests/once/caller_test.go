package once

// A process that calls is killed between the attempts of a call, and another one comes back
// with the id. The processes are this binary, see TestMain.

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/redial-go/redial"
	"github.com/redial-go/redial/redialtest"
)

// What a caller is told by its environment: it makes calls if there is an address.
const (
	callerAddr  = "REDIAL_ONCE_CALLER"
	callerFirst = "REDIAL_ONCE_FIRST"
)

// place places orders, from the given one on, and prints the reply to each, until it is
// killed or fails.
func place(addr string) error {
	first, err := strconv.Atoi(os.Getenv(callerFirst))
	if err != nil {
		return err
	}
	c := redial.NewClient(&redis.Options{Addr: addr}, redial.WithGrace(time.Minute))
	defer c.Close()
	for i := first; ; i++ {
		id := fmt.Sprint("order:", i)
		reply, err := orderOf(redial.Once(context.Background(), id), c, i, id)
		if err != nil {
			return err
		}
		fmt.Println(i, reply)
	}
}

// orderOf places an order: as a single command, a pipeline or a transaction.
func orderOf(ctx context.Context, c redis.UniversalClient, i int, key string) (string, error) {
	switch i % 3 {
	case 0:
		return incrThrice(ctx, c.Pipelined, key)
	case 1:
		return incrThrice(ctx, c.TxPipelined, key)
	}
	n, err := c.IncrBy(ctx, key, 3).Result()
	return strconv.FormatInt(n/3, 10), err
}

func TestOnce_CallerIsKilled(t *testing.T) {
	t.Parallel()
	s := redialtest.StartServer(t)
	p := redialtest.NewProxy(t, s.Addr())
	p.Match("incr")
	next := 0
	const kills = 12
	for round := range kills + 1 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), callerAddr+"="+p.Addr(), callerFirst+"="+strconv.Itoa(next))
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		killed := false
		kill := func() {
			if !killed {
				killed = true
				_ = cmd.Process.Kill() // it may have failed by itself, which the orders show
			}
		}
		t.Cleanup(kill)
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); n++ {
			var i, reply int
			_, err := fmt.Sscan(lines.Text(), &i, &reply)
			require.NoError(t, err, lines.Text())
			require.Equal(t, next, i)
			assert.Equal(t, 1, reply, "order %d of round %d", i, round)
			next++
			switch {
			case n < 3+round%3:
			case round == kills:
				kill()
			case !killed:
				// From here on it learns nothing of what it has done.
				p.CutAfterRequest(1_000_000)
				left := 1_000_000
				require.Eventually(t, func() bool {
					left = p.CutAfterRequest(left)
					return left < 1_000_000-1
				}, 10*time.Second, 5*time.Millisecond)
				kill()
				p.CutAfterRequest(0)
			}
		}
		require.True(t, killed, "round %d: the caller ended by itself", round)
		require.Error(t, cmd.Wait())
	}
	require.Greater(t, next, 3*kills)
	for i := range next {
		require.Equal(t, "3", s.Do("GET", fmt.Sprint("order:", i)), i)
	}
}
