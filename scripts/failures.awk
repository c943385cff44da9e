# Reads what go vet and go test -v of several packages printed, one package behind the other. Prints the last lines of each
# test that failed, what a package said that failed otherwise (a panic, killed, time was up), and what was not built.
BEGIN { most = 40 }

/^=== (RUN|CONT|NAME) / { test = $3; next }
/^=== / || /^ *--- (PASS|SKIP): / || /^(PASS|FAIL)$/ || /^exit status / { next }
/^ *--- FAIL: / { fail($3); next }

# What the compiler and vet say goes to standard error, between any other lines.
/^# / || /^(vet: )?[^ ]+\.go:[0-9]+:[0-9]+: / { built = built $0 "\n"; next }

/^(ok  |FAIL|\?   )\t/ {
	if ($1 == "FAIL" && !/\[(build|setup) failed\]$/) {
		if (!failures)
			fail(test)
		for (i = 1; i <= failures; i++) {
			printf "\n--- FAIL: %s (%s)\n", failed[i] == "" ? "before the first test" : failed[i], $2
			show(failed[i])
		}
		printf "%s", end
	}
	forget()
	next
}

# A panic ends the package's process. Its first lines tell most.
/^(panic: |fatal error: |SIG[A-Z]+: )/ && !panic { fail(test); panic = 1 }
panic { if (panic++ <= most) end = end $0 "\n"; next }

{ line[test, n[test]++ % most] = $0 }

END {
	if (built != "")
		printf "\nnot built:\n%s", built
	if (n[""]) # no package's last line came
		show("")
}

function fail(name) {
	if (!(name in known))
		failed[++failures] = name
	known[name]
	test = name
}

function show(name,    i) {
	for (i = n[name] > most ? n[name] - most : 0; i < n[name]; i++)
		print line[name, i % most]
}

function forget() {
	split("", n); split("", line); split("", failed); split("", known)
	failures = panic = 0
	test = end = ""
}
