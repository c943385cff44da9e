package main

import (
	"strings"
	"testing"
	"time"
)

// What a load of nothing costs is taken off, and ratios are those within a round.
func TestTables(t *testing.T) {
	ms := func(n int) cost {
		d := time.Duration(n) * time.Millisecond
		return cost{host: d, cpu: 2 * d, time: d, switches: int64(n)}
	}
	b := bench{ways: []way{{name: "plain"}, {name: "nbdkit file"}, {name: "our NBD"}, {name: "vhost-user"}}, patterns: patterns[:1]}
	b.costs = [][][]cost{make([][]cost, len(b.ways))}
	for round := 1; round <= 5; round++ { // each twice as slow as the one before it, all alike
		b.idle = append(b.idle, ms(7))
		for k, n := range []int{10, 40, 20, 10} {
			b.costs[0][k] = append(b.costs[0][k], ms(7+n<<round))
		}
	}
	text := b.tables()
	for _, want := range []string{
		"| write 1M | 3333.3 | 4.00 (4.00 to 4.00) | 2.00 (2.00 to 2.00) | 1.00 (1.00 to 1.00) |",
		"| our NBD / nbdkit file |", "| write 1M | 0.50 (0.50 to 0.50) | 0.50 (0.50 to 0.50) |",
		"| vhost-user / plain |", "5 rounds",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in\n%s", want, text)
		}
	}
	b.ways[2].name = "another"
	if strings.Contains(b.tables(), "/ nbdkit") {
		t.Error("a comparison with what was not measured")
	}
}
