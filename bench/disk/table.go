package main

import (
	"fmt"
	"slices"
	"strings"
)

func cpuRatio(a, b cost) float64  { return float64(a.cpu) / float64(b.cpu) }
func wallRatio(a, b cost) float64 { return float64(a.wall) / float64(b.wall) }

// quantile is one of the ratios of two ways, round by round.
func quantile(a, b []cost, q float64, ratio func(a, b cost) float64) float64 {
	v := make([]float64, min(len(a), len(b)))
	for i := range v {
		v[i] = ratio(a[i], b[i])
	}
	if len(v) == 0 {
		return 0
	}
	slices.Sort(v)
	return v[int(q*float64(len(v)-1)+0.5)]
}

// table is Markdown: ratios to the plain disk of the same round, CPU and then time; for the second plain disk, which
// shows the noise, with the range from quartile to quartile.
func (b *bench) table() string {
	var t strings.Builder
	t.WriteString("| CPU / time | plain: CPU, ms |")
	for _, w := range b.ways[1:] {
		t.WriteString(" " + w.name + " |")
	}
	t.WriteString("\n|---|" + strings.Repeat("---|", len(b.ways)) + "\n")
	for i, p := range b.patterns {
		base := b.costs[i][0]
		millis := func(a, _ cost) float64 { return float64(a.cpu.Nanoseconds()) / 1e6 }
		fmt.Fprintf(&t, "| %s | %.0f |", p.name, quantile(base, base, 0.5, millis))
		for k := 1; k < len(b.ways); k++ {
			of := b.costs[i][k]
			spread := func(ratio func(a, b cost) float64) string {
				text := fmt.Sprintf("%.2f", quantile(of, base, 0.5, ratio))
				if b.ways[k].kind == plain {
					text += fmt.Sprintf(" (%.2f to %.2f)", quantile(of, base, 0.25, ratio), quantile(of, base, 0.75, ratio))
				}
				return text
			}
			fmt.Fprintf(&t, " %s / %s |", spread(cpuRatio), spread(wallRatio))
		}
		t.WriteByte('\n')
	}
	return t.String()
}
