package main

import (
	"context"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/redial-go/redial/examples/internal/narrate"
)

// steps are what is told of a failover, in the words of sentinels and in ours.
var steps = map[string]string{
	"+odown":          "the sentinels agree that the primary is down",
	"+promoted-slave": "a replica was promoted",
	"+switch-master":  "the sentinels name the new primary",
}

// step is one message of a sentinel.
type step struct {
	at          time.Time
	name, words string
}

// listen passes on what one sentinel says of the failover until ctx ends.
func listen(ctx context.Context, out *narrate.Printer, addr string, news chan<- step) {
	sentinel := redis.NewSentinelClient(&redis.Options{Addr: addr})
	defer sentinel.Close()
	sub := sentinel.Subscribe(ctx, "+odown", "+promoted-slave", "+switch-master")
	defer context.AfterFunc(ctx, func() { sub.Close() })()
	for {
		msg, err := sub.ReceiveMessage(ctx)
		if err != nil {
			if ctx.Err() == nil {
				out.At(time.Now(), "---- sentinel %s is not heard any more: %v", addr, err)
			}
			return
		}
		select {
		case news <- step{time.Now(), msg.Channel, msg.Payload}:
		case <-ctx.Done():
			return
		}
	}
}
