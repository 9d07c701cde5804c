# For an interpreter in a guest (tests/e2e/test_linux_programs.py): texts, hashes, sorting, floating point, whole numbers.
use strict;
my (%h, $x, $f);
$h{$_ % 97} .= chr(65 + $_ % 26) for 1 .. 50000;
print length(join '', map { $h{$_} } sort { $a <=> $b } keys %h), ' ';
$x += sqrt($_) * sin($_) for 1 .. 20000;
printf '%.6f ', $x;
$f = 1;
$f = $f * $_ % 1000003 for 1 .. 5000;
print "$f\n";
