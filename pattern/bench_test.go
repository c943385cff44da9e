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
	for at := 0; at < len(mem); at += 1 << 20 {
		copy(mem[at:at+512<<10], program[at%(len(program)-512<<10):])
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
			// Of each part the best of all rounds: other work on the machine disturbs
			// that least.
			const part = 1 << 20
			best := make([][3]time.Duration, len(mem)/part)
			n := 0
			ways := []func(p []byte){
				func(p []byte) {
					for at := 0; at < len(p); at += chunk {
						s.Scan(p, at, at+chunk, func(Match) { n++ })
					}
				},
				func(p []byte) {
					for at := 0; at < len(p); at += chunk {
						copy(to, p[at:])
					}
				},
				func(p []byte) { n += bytes.Count(p, []byte("-----BEGIN OPENSSH PRIVATE KEY")) },
			}
			for b.Loop() {
				for way, f := range ways {
					for i := range best {
						start := time.Now()
						f(mem[i*part : (i+1)*part])
						if took := time.Since(start); best[i][way] == 0 || took < best[i][way] {
							best[i][way] = took
						}
					}
				}
			}
			var scan, copying, count time.Duration
			for _, t := range best {
				scan, copying, count = scan+t[0], copying+t[1], count+t[2]
			}
			b.ReportMetric(float64(scan)/float64(copying), "x-copy")
			b.ReportMetric(float64(scan)/float64(count), "x-count")
			b.ReportMetric(float64(set.stride), "stride")
			b.ReportMetric(float64(len(mem))/scan.Seconds()/1e9, "GB/s")
		})
	}
}
