package main

import "github.com/redial-go/redial/bench/internal/client"

func allKinds() []client.Kind {
	return []client.Kind{client.GoRedis, client.Redial, client.Rueidis, client.Redigo}
}

// everyone is the list of clients for rows that need nothing but commands.
var everyone = []string{client.GoRedisName, client.RedialName, client.RueidisName, client.RedigoName}

// pickKinds returns those of a comma-separated list of names, or all.
func pickKinds(list string) ([]client.Kind, error) {
	if list == "all" {
		return allKinds(), nil
	}
	return client.Pick(list, allKinds())
}
