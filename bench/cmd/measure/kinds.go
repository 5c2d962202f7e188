package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/redial-go/redial/bench/internal/client"
)

func allKinds() []client.Kind {
	return []client.Kind{client.GoRedis, client.Redial, client.Rueidis, client.Redigo}
}

// everyone is the list of clients for rows that need nothing but commands.
var everyone = []string{client.GoRedisName, client.RedialName, client.RueidisName, client.RedigoName}

func kindNames() string {
	var names []string
	for _, k := range allKinds() {
		names = append(names, k.Name)
	}
	return strings.Join(names, ",")
}

func pickKinds(list string) ([]client.Kind, error) {
	if list == "all" {
		return allKinds(), nil
	}
	var picked []client.Kind
	names := strings.Split(list, ",")
	for _, k := range allKinds() {
		if i := slices.Index(names, k.Name); i >= 0 {
			picked = append(picked, k)
			names = slices.Delete(names, i, i+1)
		}
	}
	if len(names) > 0 {
		return nil, fmt.Errorf("measure: unknown client %q, have %s", names[0], kindNames())
	}
	return picked, nil
}
