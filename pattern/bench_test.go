package pattern

import (
	"bytes"
	"math/rand/v2"
	"os"
	"testing"
	"time"
)

// BenchmarkScan searches memory like that of a guest, half programs and half
// zeros, and compares with what a copy of it takes, and bytes.Count for one
// text, by turns in the same run.
func BenchmarkScan(b *testing.B) {
	exe, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	program, err := os.ReadFile(exe)
	if err != nil {
		b.Fatal(err)
	}
	mem := make([]byte, 64<<20)
	for at := 0; at < len(mem); at += 2 << 20 {
		copy(mem[at:at+1<<20], program[at%(len(program)-1<<20):])
	}
	r := rand.New(rand.NewPCG(5, 6))
	random := func(n int) string {
		s := make([]byte, n)
		for i := range s {
			s[i] = byte('a' + r.IntN(26))
		}
		return string(s)
	}
	texts := func(n int) (out []String) {
		for range n {
			out = append(out, String{Text: random(8 + r.IntN(20))})
		}
		return out
	}
	const chunk = 256 << 10
	to := make([]byte, chunk)
	for _, c := range []struct {
		name string
		list []String
	}{
		{"text", []String{{Text: "-----BEGIN OPENSSH PRIVATE KEY"}}},
		{"nocase", []String{{Text: "authorized_keys", Modifiers: Modifiers{NoCase: true, Wide: true, ASCII: true}}}},
		{"short", []String{{Text: "\x7fELF"}}},
		{"bytes", []String{{Kind: Bytes, Text: "48 8b 05 ?? ?? ?? ?? [2-4] c3"}}},
		{"regex", []String{{Kind: Regex, Text: `AKIA[0-9A-Z]{16}`}}},
		{"100 texts", texts(100)},
		{"1000 texts", texts(1000)},
		{"10000 texts", texts(10000)},
	} {
		b.Run(c.name, func(b *testing.B) {
			set, err := Compile([]*Rule{NewRule("r", c.list...)})
			if err != nil {
				b.Fatal(err)
			}
			s := set.Scanner()
			b.SetBytes(int64(len(mem)))
			var scan, copying, count time.Duration
			n := 0
			for b.Loop() {
				start := time.Now()
				for at := 0; at < len(mem); at += chunk {
					s.Scan(mem, at, at+chunk, func(Match) { n++ })
				}
				scan += time.Since(start)
				start = time.Now()
				for at := 0; at < len(mem); at += chunk {
					copy(to, mem[at:])
				}
				copying += time.Since(start)
				start = time.Now()
				bytes.Count(mem, []byte("-----BEGIN OPENSSH PRIVATE KEY"))
				count += time.Since(start)
			}
			b.ReportMetric(float64(scan)/float64(copying), "x-copy")
			b.ReportMetric(float64(scan)/float64(count), "x-count")
			b.ReportMetric(float64(set.stride), "stride")
			b.ReportMetric(float64(len(mem))/scan.Seconds()*float64(b.N)/1e9, "GB/s")
		})
	}
}
