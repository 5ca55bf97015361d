#!/usr/bin/env bash
# Every check that runs no test. All of them run, also after one has failed; what failed is shown in full.
# tools/lint.sh NAME... runs those named only.
# shellcheck disable=SC2317,SC2329  # the functions are called by their names
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
PATH=$PWD/.venv/bin:$PATH
export ANSIBLE_NOCOLOR=1 NO_COLOR=1

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tools/stage.sh "$work/stage" || exit 1
collections=$work/stage
staged=$collections/ansible_collections/cryoprotect/backup

ruff_check() { ruff check --quiet --ignore-noqa --output-format concise . && ruff format --quiet --diff .; }
house_rules() { python tools/check_tree.py && python tools/role_docs.py --check; }
shell() { shellcheck tools/*.sh playbooks/files/*.sh extensions/molecule/*/*.sh .ci/run; }
types_engine() { mypy plugins/module_utils/_engine; }
# Modules are checked where their imports of the collection resolve.
types_modules() {
    local modules=("$staged"/plugins/modules/*.py "$staged"/plugins/module_utils/_*.py)
    [ -e "${modules[0]}" ] || modules=("${modules[@]:1}")
    [ -e "${modules[0]}" ] || return 0
    (cd "$collections" && mypy --config-file "$OLDPWD/.config/mypy-modules.ini" "${modules[@]}")
}
ansible_lint() { ansible-lint --strict --offline --nocolor -q; }
workflow() { check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml; }
changelog() { antsibull-changelog lint; }
documentation() {
    (cd "$staged" && ANSIBLE_COLLECTIONS_PATH=$collections antsibull-docs \
        --config-file "$OLDPWD/.config/antsibull.cfg" lint-collection-docs \
        --plugin-docs --validate-collection-refs=all --disallow-unknown-collection-refs .)
}
spelling() { (cd "$staged" && codespell --config "$OLDPWD/.config/codespell.cfg" .); }
# What Galaxy itself does with an upload: names, documentation, lint. Its warnings count.
importer() {
    tools/build.sh "$work/build" && cd "$work/build" &&
        python -m galaxy_importer.main ./*.tar.gz | tee importer.log && ! grep -E '^(WARNING|ERROR)' importer.log
}
sanity() { tools/sanity.sh; }

run() {
    local name=$1 began=$SECONDS
    if ("$name") >"$work/$name.log" 2>&1; then
        printf 'ok      %-14s %3d s\n' "$name" $((SECONDS - began))
        return 0
    fi
    sed "s/^/    /" "$work/$name.log"
    printf 'FAILED  %-14s %3d s\n' "$name" $((SECONDS - began))
    return 1
}

if [ $# -gt 0 ]; then
    failed=0
    for name in "$@"; do run "$name" || failed=1; done
    exit $failed
fi

# The sanity tests take as long as the rest together: they have a core of their own.
run sanity >"$work/sanity.result" 2>&1 &
background=$!
failed=0
for name in ruff_check house_rules shell types_engine types_modules ansible_lint workflow changelog \
    documentation spelling importer; do
    run "$name" || failed=1
done
wait "$background" || failed=1
cat "$work/sanity.result"
exit $failed
